//! Listings are whole, or they fail: however many streams are open, whatever has run out, and whoever had the stream's
//! memory before.

use sheaf_tests::{Engine, Scene};

/// The C library's directory calls, for Python.
const CALLS: &str = "
import ctypes, errno, os, resource
libc = ctypes.CDLL(None, use_errno=True)
class Entry(ctypes.Structure):
    _fields_ = [('ino', ctypes.c_uint64), ('off', ctypes.c_int64), ('reclen', ctypes.c_ushort),
                ('type', ctypes.c_ubyte), ('name', ctypes.c_char * 256)]
for name in ['opendir', 'fdopendir']: getattr(libc, name).restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Entry)
def open_directory(name):
    stream = libc.opendir(name.encode())
    if not stream: raise OSError(ctypes.get_errno(), name)
    return stream
def names(stream):
    found = []
    while entry := libc.readdir(ctypes.c_void_p(stream)): found.append(entry.contents.name.decode())
    return sorted(name for name in found if not name.startswith('.'))
def close(stream): libc.closedir(ctypes.c_void_p(stream))
for name in 'abc':
    with open('ckpt/' + name, 'w') as file: file.write(name)
os.makedirs('other/inside', exist_ok=True)
def use_up(leave):
    # No descriptor is left but so many.
    taken = []
    while True:
        try: taken.append(os.dup(0))
        except OSError: break
    for _ in range(leave): os.close(taken.pop())
    return taken
";

/// Runs a Python script on both sides; it must end well and say the same.
fn same(script: &str) {
    let scene = Scene::new(Engine::IoUring);
    let script = format!("{CALLS}{script}");
    let native = scene.native(&["python3", "-c", &script]).expect_success();
    let captured = scene.preloaded(&["python3", "-c", &script]).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
}

#[test]
fn a_thousand_streams_at_once() {
    same(
        "
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
streams = [open_directory('ckpt') for _ in range(1000)]
for stream in streams: assert names(stream) == ['a', 'b', 'c'], names(stream)
for stream in streams[::2]: close(stream)
streams[::2] = [open_directory('ckpt') for _ in range(500)]
for stream in streams[::2]: assert names(stream) == ['a', 'b', 'c'], names(stream)
for stream in streams[1::2]:
    libc.rewinddir(ctypes.c_void_p(stream))
    assert names(stream) == ['a', 'b', 'c'], names(stream)
for stream in streams: close(stream)
print(len(streams))
",
    );
}

#[test]
fn no_descriptor_left() {
    same(
        "
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = use_up(0)
try: open_directory('ckpt')
except OSError as error: print(error.errno == errno.EMFILE)
os.close(taken.pop())
stream = open_directory('ckpt')
print(names(stream))
libc.rewinddir(ctypes.c_void_p(stream))
print(names(stream))
close(stream)
",
    );
}

#[test]
fn a_descriptor_that_is_the_last_one_lists_everything_or_fails() {
    let scene = Scene::new(Engine::IoUring);
    let script = format!(
        "{CALLS}
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
fd = os.open('ckpt', os.O_RDONLY)
taken = use_up(0)
stream = libc.fdopendir(fd)
if not stream:
    assert ctypes.get_errno() == errno.EMFILE
    os.close(taken.pop())
    stream = libc.fdopendir(fd)
print(names(stream))
"
    );
    let captured = scene.preloaded(&["python3", "-c", &script]).expect_success();
    assert_eq!(captured.text(), "['a', 'b', 'c']\n");
}

#[test]
fn a_directory_is_not_taken_for_empty_when_nobody_can_look() {
    same(
        "
os.makedirs('ckpt/one'); os.makedirs('ckpt/two')
with open('ckpt/two/state', 'w') as file: file.write('state')
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = use_up(0)
try: os.rename('ckpt/one', 'ckpt/two'); print('moved')
except OSError: pass
for fd in taken: os.close(fd)
print(sorted(os.listdir('ckpt')), sorted(os.listdir('ckpt/two')), open('ckpt/two/state').read())
",
    );
}

#[test]
fn a_directory_does_not_leave_without_its_names_when_nobody_can_look() {
    let scene = Scene::new(Engine::IoUring);
    let script = format!(
        "{CALLS}
os.makedirs('ckpt/one')
with open('ckpt/one/state', 'w') as file: file.write('state')
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = use_up(0)
try: os.rename('ckpt/one', 'away'); print('moved')
except OSError: pass
for fd in taken: os.close(fd)
print(os.listdir('ckpt/one'), open('ckpt/one/state').read(), os.path.exists('away'))
"
    );
    let captured = scene.preloaded(&["python3", "-c", &script]).expect_success();
    assert_eq!(captured.text(), "['state'] state False\n");
}

#[test]
fn a_stream_in_the_memory_of_one_that_was_closed_unseen() {
    same(
        "
own = ctypes.CDLL('libc.so.6')
close_directly = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(('closedir', own))
seen = set()
for directory in ['other', '.', '/usr', 'ckpt/../other']:
    for _ in range(20):
        stream = open_directory('ckpt')
        seen.add(tuple(names(stream)))
        close_directly(stream)
        stream = open_directory(directory)
        seen.add('abc' in ''.join(names(stream)))
        close(stream)
        fd = os.open(directory, os.O_RDONLY)
        close_directly(open_directory('ckpt'))
        stream = libc.fdopendir(fd)
        seen.add(str([name for name in names(stream) if len(name) == 1]))
        close(stream)
print(sorted(map(str, seen)))
",
    );
}

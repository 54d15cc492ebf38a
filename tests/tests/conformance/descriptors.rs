//! Descriptors of captured files: the kernel says the same of them as of native ones.

use sheaf_tests::{Engine, Scene};

#[test]
fn the_flags_are_those_that_were_asked_for() {
    let script = "
import fcntl, itertools, os
several = [os.O_APPEND, os.O_NONBLOCK, os.O_DIRECT, os.O_CLOEXEC, os.O_SYNC, os.O_NOATIME]
for created, access in itertools.product([0, os.O_CREAT, os.O_TRUNC, os.O_CREAT | os.O_TRUNC], [os.O_WRONLY, os.O_RDWR]):
    for count in range(3):
        for extra in itertools.combinations(several, count):
            flags = created | access
            for flag in extra: flags |= flag
            seen = []
            if created & os.O_CREAT and os.path.exists('ckpt/state'): os.unlink('ckpt/state')
            for _ in range(2):
                if not os.path.exists('ckpt/state') and not created & os.O_CREAT: open('ckpt/state', 'w').close()
                try: fd = os.open('ckpt/state', flags)
                except OSError as error: seen.append(error.errno); continue
                seen.append((fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)))
                os.close(fd)
            print(flags, seen)
";
    let scene = Scene::new(Engine::IoUring);
    let native = scene.native(&["python3", "-c", script]).expect_success();
    let captured = scene.preloaded(&["python3", "-c", script]).expect_success();
    assert_eq!(captured.text(), native.text(), "{}", captured.describe());
}

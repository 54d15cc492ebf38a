//! Programs that lie in checkpoint paths: the exec family, posix_spawn, and dlopen of a library there.
//!
//! The kernel is given the staged file, with its data back, and the program its own name and arguments: a script's
//! interpreter is started as the kernel would, but with the name by which the script was called. The environment is
//! left as the caller wants it. Everything here may run in a vforked child: what must outlive the call is kept for
//! ever, and nothing is written that the parent relies on.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;

use libc::{O_CLOEXEC, O_RDONLY, pid_t};

use crate::hooks::{self, fail, real};
use crate::paths::{self, Kind, Last, Resolution};
use crate::scratch::Scratch;
use crate::system::{self, AT_FDCWD, Descriptor, Errno, Result};
use crate::{actions, kept, open};

/// Arguments or environment, as the program gives them.
pub type Vector = *const *const c_char;
/// `posix_spawn_file_actions_t`, which is the C library's own.
pub type Actions = c_void;
/// `posix_spawnattr_t`, which is the C library's own.
pub type Attributes = c_void;

/// Interpreters of interpreters that are followed, as in the kernel.
const INTERPRETERS_MAX: u32 = 5;
/// What the kernel reads of a file to learn what it is.
const HEAD_BYTES: usize = 256;
/// Arguments that fit on the stack; more take memory.
const ARGUMENTS_ON_STACK: usize = 64;
const SHELL: &CStr = c"/bin/sh";

unsafe extern "C" {
    static environ: Vector;
}

/// An interpreter, and the one argument that a script may give it.
type Script = (&'static CStr, Option<&'static CStr>);

/// A program in the stage.
struct Program {
    /// Where the kernel finds it.
    path: &'static CStr,
    /// Keeps its data in the stage until it runs.
    _hold: Option<Descriptor>,
    /// The interpreter and its argument, if it is a script.
    script: Option<Script>,
}

/// What a path means to who wants to execute it.
enum Found {
    /// The program's own call is right.
    Native,
    /// The call fails so.
    Failed(Errno),
    /// What lies in the stage, or behind a link that only the stage has.
    Program(Program),
}

/// Looks for a program, and has its data brought back.
#[inline(never)]
unsafe fn find(directory: c_int, path: *const c_char, last: Last) -> Found {
    // SAFETY: the program's path.
    let (kept, is_staged) = match unsafe { paths::resolve(directory, path, last) } {
        Resolution::Foreign => return Found::Native,
        Resolution::Failed(error) => return Found::Failed(error),
        Resolution::Ours(entry) if last == Last::Entry && entry.staged().is_some_and(paths::is_link) => {
            return Found::Failed(Errno(libc::ELOOP));
        }
        Resolution::Ours(entry) if entry.kind == Kind::Managed => (kept::keep(entry.tree_path()), entry.is_regular()),
        Resolution::Ours(entry) if entry.is_detour => (kept::keep(entry.real_path()), false),
        Resolution::Ours(_) => return Found::Native,
    };
    let Some(kept) = kept else { return Found::Failed(Errno(libc::ENOMEM)) };
    if !is_staged {
        return Found::Program(Program { path: kept, _hold: None, script: None });
    }
    // SAFETY: the program's path.
    let held = match unsafe { open::attempt(directory, path, O_RDONLY | O_CLOEXEC, 0) } {
        Some(Ok(fd)) => Descriptor::own(fd).ok(),
        // What may be executed and not read.
        Some(Err(Errno(libc::EACCES))) | None => None,
        Some(Err(error)) => return Found::Failed(error),
    };
    let script = match &held {
        Some(file) => match read_script(file) {
            Ok(script) => script,
            Err(error) => return Found::Failed(error),
        },
        None => None,
    };
    // Of other programs the kernel asks this itself.
    if let (Some(_), Err(error)) = (script, system::access(kept, libc::X_OK)) {
        return Found::Failed(error);
    }
    Found::Program(Program { path: kept, _hold: held, script })
}

/// The interpreter and its one argument, by the kernel's rules; `None` when the file is no script.
fn read_script(file: &Descriptor) -> Result<Option<Script>> {
    let mut head = [0; HEAD_BYTES + 1];
    let room = head.get_mut(..HEAD_BYTES).unwrap_or_default();
    system::retry(|| system::read(file.number(), room))?;
    let Some(rest) = head.strip_prefix(b"#!") else { return Ok(None) };
    let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | 0)) else { return Err(Errno(libc::ENOEXEC)) };
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let trim = |text: &[u8]| {
        let start = text.iter().position(|byte| !is_blank(byte)).unwrap_or(text.len());
        let end = text.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
        start..end
    };
    let line = rest.get(..end).and_then(|line| line.get(trim(line))).unwrap_or_default();
    let length = line.iter().position(is_blank).unwrap_or(line.len());
    let (interpreter, argument) = line.split_at_checked(length).unwrap_or_default();
    let argument = argument.get(trim(argument)).unwrap_or_default();
    // A line that fills all that is read may have been cut in its interpreter's name.
    if interpreter.is_empty() || argument.is_empty() && end + 2 >= HEAD_BYTES {
        return Err(Errno(libc::ENOEXEC));
    }
    let argument = if argument.is_empty() { None } else { Some(keep_bytes(argument)?) };
    Ok(Some((keep_bytes(interpreter)?, argument)))
}

fn keep_bytes(bytes: &[u8]) -> Result<&'static CStr> {
    let mut scratch = Scratch::claim().ok_or(Errno(libc::ENOMEM))?;
    scratch.other.set(bytes).map_err(|_| Errno(libc::ENOEXEC))?;
    kept::keep(scratch.other.c_str()).ok_or(Errno(libc::ENOMEM))
}

/// Calls `run` with other arguments: those in `front`, then the program's own but the first.
#[inline(never)]
unsafe fn with_front(front: [*const c_char; 3], arguments: Vector, run: &mut dyn FnMut(Vector) -> c_int) -> c_int {
    // SAFETY: the program's arguments, a vector that ends with null, or none.
    let count = unsafe { system::vector_length(arguments) };
    let length = front.len() + count + 1;
    let mut few = [ptr::null::<c_char>(); ARGUMENTS_ON_STACK];
    let bytes = length * size_of::<*const c_char>();
    let vector = match length <= few.len() {
        true => few.as_mut_ptr(),
        false => match system::map(bytes) {
            Ok(memory) => memory.cast(),
            Err(Errno(number)) => return fail(number),
        },
    };
    // SAFETY: there is room for all of `front`, the program's arguments and the null, which is there already.
    unsafe {
        let rest = (1..count).map(|index| *arguments.add(index));
        let all = front.into_iter().filter(|argument| !argument.is_null()).chain(rest);
        for (index, argument) in all.enumerate() {
            vector.add(index).write(argument);
        }
    }
    let result = run(vector.cast_const());
    if length > few.len() {
        // SAFETY: mapped above with this length; the call is over.
        unsafe { system::unmap(vector.cast(), bytes) };
    }
    result
}

/// Whether a program with this environment will be preloaded with this library.
unsafe fn is_preloaded(environment: Vector) -> bool {
    // SAFETY: the program's environment: null, or a vector that ends with null and holds C strings.
    unsafe {
        let mut entries =
            (0..system::vector_length(environment)).map(|index| CStr::from_ptr(*environment.add(index)).to_bytes());
        entries.any(|entry| entry.strip_prefix(b"LD_PRELOAD=").is_some_and(|value| !value.is_empty()))
    }
}

/// Has `call` start a program: with the path to give to the kernel, none for the program's own, and the arguments.
#[inline(never)]
unsafe fn launch(
    (directory, path, last): (c_int, *const c_char, Last),
    (arguments, environment): (Vector, Vector),
    depth: u32,
    call: &mut dyn FnMut(Option<&CStr>, Vector) -> c_int,
) -> c_int {
    // SAFETY: the program's path, or an interpreter's.
    let program = match unsafe { find(directory, path, last) } {
        Found::Native if depth == 0 => return call(None, arguments),
        // SAFETY: an interpreter's path is a C string that is kept.
        Found::Native => return call(Some(unsafe { CStr::from_ptr(path) }), arguments),
        Found::Failed(Errno(number)) => return fail(number),
        Found::Program(program) => program,
    };
    let Some((interpreter, argument)) = program.script else { return call(Some(program.path), arguments) };
    // SAFETY: the program's environment.
    if unsafe { !is_preloaded(environment) } {
        // The interpreter could not open the script by its own name.
        return call(Some(program.path), arguments);
    }
    if depth == INTERPRETERS_MAX {
        return fail(libc::ELOOP);
    }
    let front = [interpreter.as_ptr(), argument.map_or(ptr::null(), CStr::as_ptr), path];
    let interpreter = (AT_FDCWD, interpreter.as_ptr(), Last::Follow);
    // SAFETY: the program's arguments; the interpreter's path is a C string that is kept.
    unsafe {
        with_front(front, arguments, &mut |arguments| launch(interpreter, (arguments, environment), depth + 1, call))
    }
}

fn followed(path: *const c_char) -> (c_int, *const c_char, Last) {
    (AT_FDCWD, path, Last::Follow)
}

fn or_given(path: Option<&CStr>, given: *const c_char) -> *const c_char {
    path.map_or(given, CStr::as_ptr)
}

/// execve(2).
pub unsafe fn execve(path: *const c_char, arguments: Vector, environment: Vector) -> c_int {
    // SAFETY: the program's arguments, or a path of our own.
    let mut call =
        |staged: Option<&CStr>, arguments| unsafe { real::execve(or_given(staged, path), arguments, environment) };
    // SAFETY: the program's arguments.
    unsafe { launch(followed(path), (arguments, environment), 0, &mut call) }
}

/// execv(3).
pub unsafe fn execv(path: *const c_char, arguments: Vector) -> c_int {
    // SAFETY: the program's arguments, and the environment as it is.
    unsafe { execve(path, arguments, environ) }
}

/// execvp(3).
pub unsafe fn execvp(file: *const c_char, arguments: Vector) -> c_int {
    // SAFETY: the program's arguments, and the environment as it is.
    unsafe { execvpe(file, arguments, environ) }
}

/// execvpe(3). A name without a slash is looked for where programs are, which is in no checkpoint directory.
pub unsafe fn execvpe(file: *const c_char, arguments: Vector, environment: Vector) -> c_int {
    // SAFETY: the program's arguments.
    if unsafe { !has_slash(file) } {
        // SAFETY: as above.
        return unsafe { real::execvpe(file, arguments, environment) };
    }
    let mut call = |staged: Option<&CStr>, arguments| {
        let Some(path) = staged else {
            // SAFETY: the program's arguments.
            return unsafe { real::execvpe(file, arguments, environment) };
        };
        // SAFETY: the program's arguments, and a path of our own.
        unsafe { real::execve(path.as_ptr(), arguments, environment) }
    };
    // SAFETY: the program's arguments.
    let result = unsafe { launch(followed(file), (arguments, environment), 0, &mut call) };
    if system::errno() != libc::ENOEXEC {
        return result;
    }
    // What is no program is a script of the shell, as execvp(3) promises; a script's name is the path that was given.
    // SAFETY: the program's arguments.
    unsafe {
        with_front([SHELL.as_ptr(), file, ptr::null()], arguments, &mut |arguments| {
            real::execve(SHELL.as_ptr(), arguments, environment)
        })
    }
}

/// Whether a path has a slash; null has none.
unsafe fn has_slash(path: *const c_char) -> bool {
    // SAFETY: the caller passes null or a C string.
    !paths::is_no_address(path) && unsafe { CStr::from_ptr(path) }.to_bytes().contains(&b'/')
}

/// execveat(2). C libraries before 2.34 lack the function.
pub unsafe fn execveat(
    directory: c_int,
    path: *const c_char,
    arguments: Vector,
    environment: Vector,
    flags: c_int,
) -> c_int {
    let mut call = |staged: Option<&CStr>, arguments| {
        let (directory, flags) = if staged.is_some() { (AT_FDCWD, 0) } else { (directory, flags) };
        // SAFETY: the program's arguments, or a path of our own.
        fail(unsafe { system::execute_at(directory, or_given(staged, path), arguments, environment, flags) }.0)
    };
    let last = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { Last::Entry } else { Last::Follow };
    // SAFETY: the program's arguments.
    unsafe { launch((directory, path, last), (arguments, environment), 0, &mut call) }
}

/// execl(3), with its arguments as they lie in memory.
unsafe extern "C" fn execl_vector(path: *const c_char, arguments: Vector) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { execv(path, arguments) }
}

/// execlp(3), with its arguments as they lie in memory.
unsafe extern "C" fn execlp_vector(file: *const c_char, arguments: Vector) -> c_int {
    // SAFETY: the program's arguments.
    unsafe { execvp(file, arguments) }
}

/// execle(3), with its arguments as they lie in memory: the environment comes behind the null.
unsafe extern "C" fn execle_vector(path: *const c_char, arguments: Vector) -> c_int {
    // SAFETY: the program's arguments end with a null and a pointer to the environment.
    unsafe { execve(path, arguments, (*arguments.add(system::vector_length(arguments) + 1)).cast()) }
}

// A function with any number of arguments gets the first few in registers and the others on the stack. Stored below
// those, the registers make one vector with them.
macro_rules! takes_any_number {
    ($name:ident, $vector:path) => {
        #[doc = concat!("`", stringify!($name), "` as the program sees it.")]
        #[cfg(target_arch = "x86_64")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "pop rax",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                "push rax",
                "call {vector}",
                "pop rcx",
                "add rsp, 40",
                "push rcx",
                "ret",
                vector = sym $vector,
            )
        }

        #[doc = concat!("`", stringify!($name), "` as the program sees it.")]
        #[cfg(target_arch = "aarch64")]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "sub sp, sp, #64",
                "stp x30, x1, [sp]",
                "stp x2, x3, [sp, #16]",
                "stp x4, x5, [sp, #32]",
                "stp x6, x7, [sp, #48]",
                "add x1, sp, #8",
                "bl {vector}",
                "ldr x30, [sp]",
                "add sp, sp, #64",
                "ret",
                vector = sym $vector,
            )
        }
    };
}

takes_any_number!(execl, execl_vector);
takes_any_number!(execlp, execlp_vector);
takes_any_number!(execle, execle_vector);

/// posix_spawn(3).
pub unsafe fn posix_spawn(
    process: *mut pid_t,
    path: *const c_char,
    actions: *const Actions,
    attributes: *const Attributes,
    arguments: Vector,
    environment: Vector,
) -> c_int {
    let mut call = |staged: Option<&CStr>, arguments| {
        let path = or_given(staged, path);
        // SAFETY: the program's arguments, or a path of our own.
        unsafe { real::posix_spawn(process, path, actions, attributes, arguments, environment) }
    };
    // SAFETY: the program's arguments.
    unsafe { spawn(path, actions, (arguments, environment), &mut call) }
}

/// posix_spawnp(3). A name without a slash is looked for where programs are, which is in no checkpoint directory.
pub unsafe fn posix_spawnp(
    process: *mut pid_t,
    file: *const c_char,
    actions: *const Actions,
    attributes: *const Attributes,
    arguments: Vector,
    environment: Vector,
) -> c_int {
    let mut call = |staged: Option<&CStr>, arguments| {
        let file = or_given(staged, file);
        // SAFETY: the program's arguments, or a path of our own.
        unsafe { real::posix_spawnp(process, file, actions, attributes, arguments, environment) }
    };
    // SAFETY: the program's arguments.
    unsafe { spawn(file, actions, (arguments, environment), &mut call) }
}

/// Starts a program with file actions, whose files must have their data until they are open.
unsafe fn spawn(
    path: *const c_char,
    actions: *const Actions,
    (arguments, environment): (Vector, Vector),
    call: &mut dyn FnMut(Option<&CStr>, Vector) -> c_int,
) -> c_int {
    let _held = actions::hold(actions);
    // SAFETY: the program's path.
    let is_ours = unsafe { has_slash(path) && (*path == b'/' as c_char || !actions::changes_directory(actions)) };
    if !is_ours {
        return call(None, arguments);
    }
    let errno = system::errno();
    // SAFETY: the program's arguments.
    let result = unsafe { launch(followed(path), (arguments, environment), 0, call) };
    let number = if result < 0 { system::errno() } else { result };
    system::set_errno(errno);
    number
}

/// What dlopen(3) is to be called with, and where it is.
#[repr(C)]
struct Load {
    path: *const c_char,
    function: *mut c_void,
}

/// Has a library's data brought back, and yields where the loader finds it.
unsafe extern "C" fn prepare_load(path: *const c_char) -> Load {
    let errno = system::errno();
    // SAFETY: the program's path. A name without a slash is looked for where libraries are.
    let found = match unsafe { has_slash(path) } {
        // SAFETY: as above.
        true => unsafe { find(AT_FDCWD, path, Last::Follow) },
        false => Found::Native,
    };
    system::set_errno(errno);
    let path = match found {
        Found::Program(program) => program.path.as_ptr(),
        Found::Native | Found::Failed(_) => path,
    };
    Load { path, function: hooks::dlopen_address() }
}

/// `dlopen` as the program sees it: a jump, because the loader learns from the return address who asks.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen() {
    core::arch::naked_asm!(
        "push rsi",
        "call {prepare}",
        "pop rsi",
        "mov rdi, rax",
        "jmp rdx",
        prepare = sym prepare_load,
    )
}

/// `dlopen` as the program sees it: a jump, because the loader learns from the return address who asks.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen() {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-32]!",
        "str x1, [sp, #16]",
        "bl {prepare}",
        "mov x16, x1",
        "ldr x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "br x16",
        prepare = sym prepare_load,
    )
}

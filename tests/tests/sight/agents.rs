//! Programs that do one thing after the other as they are told: on nodes of a job, and on a native directory beside.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use sheaf_tests::{Engine, Scene, process};

/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(100);

/// Evaluates each line that it reads, and answers by one: the value, or the name of the error.
const AGENT: &str = r#"
import errno, os, sys, threading, time
def write(path, text, mode='w'):
    with open(path, mode) as file:
        file.write(text)
def read(path):
    with open(path) as file:
        return file.read()
def fail(error):
    raise error
def tree(top='ckpt'):
    found = []
    for directory, below, files in os.walk(top, onerror=fail):
        if '.sheaf' in below:
            below.remove('.sheaf')
        for name in below + files:
            path = os.path.join(directory, name)
            if os.path.islink(path):
                found.append((path, os.readlink(path)))
            elif os.path.isdir(path):
                found.append((path, None))
            else:
                found.append((path, os.lstat(path).st_size, read(path)))
    return sorted(found)
def poll(path, seconds=60):
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > end:
            return None
        time.sleep(0.01)
    return read(path)
def lock(path, text):
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)
def at_once(count, job):
    answers = [None] * count
    def work(number):
        answers[number] = answer(lambda: job(number))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return answers
def timed(job):
    start = time.monotonic()
    return answer(job), time.monotonic() - start
def answer(job):
    try:
        return repr(job())
    except OSError as error:
        return errno.errorcode[error.errno]
print('ready', flush=True)
for line in sys.stdin:
    print(answer(lambda: eval(line)), flush=True)
"#;

/// A job of several nodes over one store.
pub struct Job {
    pub scene: Scene,
    /// Variables that all programs get.
    variables: Vec<(&'static str, String)>,
}

/// A program that does what it is told.
pub struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Job {
    pub fn new(variables: &[(&'static str, &str)]) -> Job {
        let variables = variables.iter().map(|(name, value)| (*name, value.to_string())).collect();
        Job { scene: Scene::new(Engine::IoUring), variables }
    }

    /// The directory of a node's stage.
    pub fn stage(&self, node: &str) -> PathBuf {
        self.scene.tier().join(node)
    }

    fn put(&self, node: &str, command: &mut Command) {
        fs::create_dir_all(self.stage(node)).expect("the tier is ours");
        command.env("SHEAF_STAGE", self.stage(node)).envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    /// A preloaded program on a node, with arguments to be added.
    pub fn program(&self, node: &str, program: &str) -> Command {
        let mut command = self.scene.preloaded_command("unshare");
        command.args(["--uts", "sh", "-c", "hostname \"$0\" && exec \"$@\"", node, program]);
        self.put(node, &mut command);
        command
    }

    /// `sheaf` on a node.
    pub fn sheaf(&self, node: &str, arguments: &[&str]) -> process::Finished {
        let mut command = self.scene.sheaf_command();
        self.put(node, &mut command);
        process::run(command.args(arguments))
    }

    /// An agent on a node.
    pub fn agent(&self, node: &str) -> Agent {
        Agent::start(self.program(node, "python3").args(["-c", AGENT]))
    }

    /// An agent in the native directory.
    pub fn native(&self) -> Agent {
        Agent::start(self.scene.native_command("python3").args(["-c", AGENT]))
    }
}

impl Agent {
    fn start(command: &mut Command) -> Agent {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program is installed");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if sender.send(line.expect("an answer is text")).is_err() {
                    return;
                }
            }
        });
        let agent = Agent { child, stdin, answers };
        assert_eq!(agent.answer(), "ready");
        agent
    }

    fn answer(&self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("the program answers")
    }

    /// Has it begin with something.
    pub fn tell(&mut self, expression: &str) {
        let stdin = self.stdin.as_mut().expect("it has not been told to end");
        writeln!(stdin, "{expression}").expect("the program lives");
    }

    /// What came of what it was told.
    pub fn hear(&self) -> String {
        self.answer()
    }

    /// What comes of an expression.
    pub fn ask(&mut self, expression: &str) -> String {
        self.tell(expression);
        self.answer()
    }

    /// The same, which must not fail.
    pub fn act(&mut self, expression: &str) {
        assert_eq!(self.ask(expression), "None", "{expression}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

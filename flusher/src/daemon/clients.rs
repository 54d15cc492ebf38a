//! The processes that have captured: the flusher stays while one of them lives.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// One living process.
#[derive(Debug)]
struct Client {
    process: Pid,
    /// Readable when the process has ended. `None` before Linux 5.3: then its start time tells.
    death: Option<Arc<OwnedFd>>,
    started: Option<String>,
}

/// The register of clients.
#[derive(Debug, Default)]
pub struct Clients {
    living: Vec<Client>,
    have_ended: bool,
}

impl Clients {
    /// Registers a process; twice is once.
    pub fn add(&mut self, process: Pid) {
        self.forget_dead();
        if self.living.iter().any(|client| client.process == process) {
            return;
        }
        let death = pidfd_open(process, PidfdFlags::empty()).ok().map(Arc::new);
        self.living.push(Client { process, death, started: start_time(process) });
    }

    /// Forgets a process that has not ended.
    pub fn remove(&mut self, process: Pid) {
        self.living.retain(|client| client.process != process);
    }

    /// Drops those that have ended.
    pub fn forget_dead(&mut self) {
        let before = self.living.len();
        self.living.retain(Client::is_alive);
        self.have_ended |= self.living.len() < before;
    }

    /// Whether some have ended since this was asked last.
    pub fn have_ended(&mut self) -> bool {
        std::mem::take(&mut self.have_ended)
    }

    /// How many live.
    pub fn len(&self) -> usize {
        self.living.len()
    }

    /// Whether none lives.
    pub fn is_empty(&self) -> bool {
        self.living.is_empty()
    }

    /// Descriptors that become readable when a client ends.
    pub fn descriptors(&self) -> Vec<Arc<OwnedFd>> {
        self.living.iter().filter_map(|client| client.death.clone()).collect()
    }
}

impl Client {
    fn is_alive(&self) -> bool {
        match &self.death {
            Some(death) => {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut [PollFd::new(&**death, PollFlags::IN)], Some(&now)) == Ok(0)
            }
            None => self.started.is_some() && start_time(self.process) == self.started,
        }
    }
}

/// Field 22 of /proc/PID/stat (proc(5)): with the number it identifies a process. `None` for one that has ended.
fn start_time(process: Pid) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    // The second field, the name, may hold anything; the state follows its closing parenthesis.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    if ended { None } else { fields.get(19).map(|field| (*field).to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_client_counts_until_it_ends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let process = Pid::from_raw(child.id() as i32).unwrap();
        let mut clients = Clients::default();
        clients.add(process);
        clients.add(process);
        assert_eq!(clients.len(), 1);
        let without_pidfd = Client { process, death: None, started: start_time(process) };
        assert!(without_pidfd.is_alive());
        drop(child.stdin.take());
        // Ended, and not yet reaped: that must count as dead.
        poll(&mut [PollFd::new(&*clients.descriptors()[0], PollFlags::IN)], None).unwrap();
        assert!(!without_pidfd.is_alive());
        clients.forget_dead();
        assert!(clients.is_empty());
        child.wait().unwrap();
    }
}

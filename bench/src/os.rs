//! What the standard library lacks: epoll, pinning to a core, and a process's own account of its CPU time and memory.

#![expect(unsafe_code, reason = "the floor is the system calls themselves")]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// An epoll instance.
pub(crate) struct Poll(RawFd);

/// Room for events.
pub(crate) struct Events(Vec<libc::epoll_event>);

impl Events {
    pub(crate) fn new(most: usize) -> Self {
        Self(vec![libc::epoll_event { events: 0, u64: 0 }; most])
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    /// Watches for something to read, level-triggered.
    pub(crate) fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: token,
        };
        // SAFETY: the event lives for the call.
        check(unsafe { libc::epoll_ctl(self.0, libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Waits for events; none after `limit`.
    pub(crate) fn wait(&self, events: &mut Events, limit: Duration) -> io::Result<Vec<u64>> {
        let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the buffer is as long as is said.
        let count = match check(unsafe {
            libc::epoll_wait(self.0, events.0.as_mut_ptr(), events.0.len() as i32, limit)
        }) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(events.0[..count as usize]
            .iter()
            .map(|event| event.u64)
            .collect())
    }

    /// Looks for events without sleeping: waking a sleeper would cost the server's `send`. Others on this core get their turn.
    pub(crate) fn look(&self, events: &mut Events) -> io::Result<Vec<u64>> {
        let tokens = self.wait(events, Duration::ZERO)?;
        if tokens.is_empty() {
            std::thread::yield_now();
        }
        Ok(tokens)
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        // SAFETY: nobody else has the descriptor.
        unsafe { libc::close(self.0) };
    }
}

/// The cores of this run: one for the server, one for everything else. The same one, where there is no other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) others: usize,
}

impl Cores {
    /// The first two that this process may use.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        // SAFETY: an all-zero set is a valid, empty one, and it lives for the calls.
        let allowed: Vec<usize> = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            check(libc::sched_getaffinity(
                0,
                size_of::<libc::cpu_set_t>(),
                &mut set,
            ))?;
            (0..libc::CPU_SETSIZE as usize)
                .filter(|core| libc::CPU_ISSET(*core, &set))
                .collect()
        };
        let server = allowed.first().copied().unwrap_or(0);
        Ok(Self {
            server,
            others: allowed.get(1).copied().unwrap_or(server),
        })
    }
}

/// Keeps this thread, and what it starts, on one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    // SAFETY: an all-zero set is a valid, empty one, and it lives for the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        check(libc::sched_setaffinity(
            0,
            size_of::<libc::cpu_set_t>(),
            &set,
        ))
        .map(drop)
    }
}

/// Has this thread run before others, where that is allowed.
pub(crate) fn hurry() {
    // SAFETY: no memory is passed.
    unsafe {
        // 0 is the calling thread (setpriority(2)).
        libc::setpriority(libc::PRIO_PROCESS, 0, -20);
    }
}

/// Raises the limit of open files to what is allowed, and says what that is.
pub(crate) fn raise_file_limit() -> io::Result<usize> {
    // SAFETY: the struct lives for the calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
        Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
    }
}

/// CPU time of a process in microseconds, user and system, over all its threads.
pub(crate) fn cpu_us(pid: u32) -> io::Result<f64> {
    let mut total = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two readings.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        total += text
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<f64>().ok())
            .unwrap_or(0.0)
            / 1000.0;
    }
    Ok(total)
}

/// Resident memory of a process in KiB.
pub(crate) fn rss_kib(pid: u32) -> io::Result<f64> {
    status_kib(pid, "VmRSS:")
}

/// The most that was ever resident since [`forget_peak`], in KiB.
pub(crate) fn peak_kib(pid: u32) -> io::Result<f64> {
    status_kib(pid, "VmHWM:")
}

/// Resets [`peak_kib`] (proc_pid_clear_refs(5)).
pub(crate) fn forget_peak(pid: u32) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

fn status_kib(pid: u32, name: &str) -> io::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0))
}

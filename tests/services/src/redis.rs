//! A standalone Redis server without persistence.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::{Server, bound_command};
use crate::{find_program, free_port, loopback};

/// How to start one.
pub struct Redis;

impl Redis {
    /// Whether the program is installed.
    pub fn is_installed() -> bool {
        find_program(&["redis-server"]).is_some()
    }

    /// Starts a server in `dir`, with `extra` arguments (`["--requirepass", "x"]`).
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(dir: &Path, extra: &[&str]) -> Result<Server> {
        let program = find_program(&["redis-server"]).context("redis-server is not installed")?;
        std::fs::create_dir_all(dir)?;
        let port = free_port()?;
        let dir_arg = dir.to_owned();
        let extra: Vec<String> = extra.iter().map(|&arg| arg.to_owned()).collect();
        let command = move || {
            let mut command = bound_command(&program, None);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
            command.arg(&dir_arg).args(&extra);
            command
        };
        Server::start("redis", dir, port, "TERM", command, move || answers(loopback(port)))
    }
}

/// Any reply counts, `-NOAUTH` too; `-LOADING` does not.
pub(crate) fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.write_all(b"PING\r\n")?;
        let mut reply = [0; 8];
        let length = socket.read(&mut reply)?;
        Ok(length > 0 && !reply.starts_with(b"-LOADING"))
    };
    ask().unwrap_or(false)
}

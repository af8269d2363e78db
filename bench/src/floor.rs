//! The floor: an epoll loop in which nothing is done but what the kernel needs. It accepts sockets, answers the opening handshake with fixed bytes,
//! and for every byte on a control connection sends one pre-encoded frame to each socket.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::Result;

use crate::os;

/// Serves for ever. `payload` is the frame's payload in bytes; with `coalesce` a burst of control bytes read together leaves in one send per socket.
pub(crate) fn serve(listener: TcpListener, payload: usize, coalesce: bool) -> Result<()> {
    listener.set_nonblocking(true)?;
    let frame = frame(payload);
    let poll = os::Poll::new()?;
    poll.add(listener.as_raw_fd(), 0)?;
    let mut sockets: Vec<Option<TcpStream>> = vec![None];
    let mut members: Vec<usize> = Vec::new();
    let mut events = os::Events::new(1024);
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        for token in poll.wait(&mut events)? {
            if token == 0 {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nodelay(true)?;
                    socket.set_nonblocking(true)?;
                    poll.add(socket.as_raw_fd(), sockets.len() as u64)?;
                    sockets.push(Some(socket));
                }
                continue;
            }
            let slot = token as usize;
            let Some(socket) = &mut sockets[slot] else { continue };
            let n = match socket.read(&mut buffer) {
                Ok(0) | Err(_) => {
                    sockets[slot] = None;
                    members.retain(|member| *member != slot);
                    continue;
                }
                Ok(n) => n,
            };
            if buffer.starts_with(b"GET ") {
                socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")?;
                members.push(slot);
            } else if buffer[0] == b'!' {
                let burst = buffer[..n].iter().filter(|b| **b == b'!').count();
                fan_out(&mut sockets, &members, &frame, burst, coalesce)?;
            }
            buffer[0] = 0;
        }
    }
}

fn fan_out(sockets: &mut [Option<TcpStream>], members: &[usize], frame: &[u8], burst: usize, coalesce: bool) -> Result<()> {
    let together = frame.repeat(burst);
    let (bytes, times) = if coalesce { (&together[..], 1) } else { (frame, burst) };
    for _ in 0..times {
        for member in members {
            let Some(socket) = &mut sockets[*member] else { continue };
            // The benchmark's messages fit into the socket's buffer: what did not would be counted as missing.
            let sent = socket.write(bytes)?;
            anyhow::ensure!(sent == bytes.len(), "the floor's socket was full");
        }
    }
    Ok(())
}

/// An unmasked text frame as the gateway writes it.
fn frame(payload: usize) -> Vec<u8> {
    let mut frame = vec![0x81];
    if payload < 126 {
        frame.push(payload as u8);
    } else {
        frame.push(126);
        frame.extend_from_slice(&(payload as u16).to_be_bytes());
    }
    frame.resize(frame.len() + payload, b'x');
    frame
}

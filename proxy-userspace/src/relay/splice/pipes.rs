//! The pipes that directions borrow while bytes are in them.
//!
//! A pipe is used again only if it was given back, which is done when it is empty. Any other is
//! closed with what is in it: bytes of one tunnel never reach another.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::limits::IDLE_PIPES;

/// All pipes of the engine.
#[derive(Debug)]
pub(super) struct Pipes {
    /// How many there may be at a time.
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Arc<Pipe>>,
    /// Those that are borrowed.
    borrowed: usize,
}

#[derive(Debug)]
struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { output, input })
    }
}

impl Pipes {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            state: Mutex::default(),
        })
    }

    /// An empty pipe, if one can be had.
    pub(super) fn borrow(self: &Arc<Self>) -> Option<Lease> {
        let idle = {
            let mut state = self.state();
            if state.borrowed >= self.most {
                return None;
            }
            let idle = state.idle.pop();
            state.borrowed += 1;
            idle
        };
        let pipe = match idle {
            Some(pipe) => Ok(pipe),
            None => Pipe::new().map(Arc::new),
        };
        match pipe {
            Ok(pipe) => Some(Lease {
                pipes: Arc::clone(self),
                pipe,
            }),
            Err(_out_of_descriptors) => {
                self.state().borrowed -= 1;
                None
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the system gives us pipes, and splices: from one to another.
pub(super) fn try_out() -> io::Result<()> {
    let (from, to) = (Pipe::new()?, Pipe::new()?);
    rustix::io::write(&from.input, b"x")?;
    let moved = splice(
        &from.output,
        None,
        &to.input,
        None,
        1,
        SpliceFlags::NONBLOCK,
    )?;
    if moved == 1 {
        Ok(())
    } else {
        Err(io::Error::other("a byte was not spliced"))
    }
}

/// A borrowed pipe.
#[derive(Debug)]
pub(super) struct Lease {
    pipes: Arc<Pipes>,
    pipe: Arc<Pipe>,
}

impl Lease {
    /// Where bytes come out.
    pub(super) fn output(&self) -> BorrowedFd<'_> {
        self.pipe.output.as_fd()
    }

    /// Where bytes go in.
    pub(super) fn input(&self) -> BorrowedFd<'_> {
        self.pipe.input.as_fd()
    }

    /// Gives the pipe, which must be empty, to whoever needs one next.
    pub(super) fn give_back(self) {
        let mut state = self.pipes.state();
        if state.idle.len() < IDLE_PIPES {
            state.idle.push(Arc::clone(&self.pipe));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pipes.state().borrowed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_no_more() {
        let pipes = Pipes::new(2);
        try_out().unwrap();
        let (one, two) = (pipes.borrow().unwrap(), pipes.borrow().unwrap());
        assert!(pipes.borrow().is_none());
        drop(one);
        let three = pipes.borrow().unwrap();
        assert!(pipes.borrow().is_none());
        two.give_back();
        three.give_back();
        assert!(pipes.borrow().is_some());
    }

    #[test]
    fn only_what_was_given_back_is_used_again() {
        let pipes = Pipes::new(2);
        let dirty = pipes.borrow().unwrap();
        rustix::io::write(dirty.input(), b"secret").unwrap();
        drop(dirty);
        let clean = pipes.borrow().unwrap();
        let mut byte = [0];
        assert!(
            rustix::io::read(clean.output(), &mut byte).is_err(),
            "it is empty"
        );
        clean.give_back();
        assert_eq!(pipes.state().idle.len(), 1);
        drop(pipes.borrow().unwrap());
        assert_eq!(pipes.state().idle.len(), 0);
    }
}

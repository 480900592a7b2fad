//! Which tunnel uses which places of the program's arrays.
//!
//! A tunnel holds a [`Lease`] of one index `i`: its directions live in slots `2i` (from the client)
//! and `2i + 1` (from the upstream).

use std::sync::{Arc, Mutex, PoisonError};

use proxy_common::Flow;

use super::poller::Wake;
use crate::kernel::object::Tables;

/// All slots.
#[derive(Debug)]
pub(super) struct Slots {
    tables: Tables,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Who uses the index, for the events that name a slot.
    users: Vec<Option<Arc<Wake>>>,
    free: Vec<u32>,
}

impl Slots {
    /// Slots for `tunnels` tunnels.
    pub(super) fn new(tables: Tables, tunnels: u32) -> Arc<Self> {
        Arc::new(Self {
            tables,
            state: Mutex::new(State {
                users: vec![None; tunnels as usize],
                free: (0..tunnels).rev().collect(),
            }),
        })
    }

    /// The program's maps.
    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// How many are taken, and how many there are.
    pub(super) fn used(&self) -> (usize, usize) {
        let state = self.state();
        let all = state.users.len();
        (all - state.free.len(), all)
    }

    /// Takes an index for a tunnel; `None` if all are taken.
    pub(super) fn lease(self: &Arc<Self>, wake: &Arc<Wake>, cookies: [u64; 2]) -> Option<Lease> {
        let mut state = self.state();
        let index = state.free.pop()?;
        *state.users.get_mut(index as usize)? = Some(Arc::clone(wake));
        Some(Lease {
            slots: Arc::clone(self),
            index,
            cookies,
        })
    }

    /// Wakes the tunnel whose direction the program asks about.
    pub(super) fn wake(&self, slot: u64) {
        let user = usize::try_from(slot / 2)
            .ok()
            .and_then(|index| self.state().users.get(index).cloned().flatten());
        if let Some(wake) = user {
            wake.notify.notify_one();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tunnel's slots and flows. Must outlive the tunnel's sockets: once they are closed the program
/// cannot run for them any more (`sock_map_close` detaches them under the socket's lock), and only
/// then may the slots be cleared for somebody else.
#[derive(Debug)]
pub(super) struct Lease {
    slots: Arc<Slots>,
    index: u32,
    cookies: [u64; 2],
}

impl Lease {
    /// The program's maps.
    pub(super) fn tables(&self) -> &Tables {
        &self.slots.tables
    }

    /// The slots of the direction from the client and of the one from the upstream.
    pub(super) fn pair(&self) -> [u32; 2] {
        [2 * self.index, 2 * self.index + 1]
    }

    /// Tells the program where the bytes of both sockets go.
    pub(super) fn publish(&self) -> std::io::Result<()> {
        let [client, upstream] = self.cookies;
        let [up, down] = self.pair();
        for (cookie, peer, slot) in [(client, upstream, up), (upstream, client, down)] {
            let reserved = 0;
            self.tables().insert_flow(
                cookie,
                Flow {
                    peer,
                    slot,
                    reserved,
                },
            )?;
        }
        Ok(())
    }

    /// The counters for whoever watches the tunnel.
    pub(super) fn counters(&self) -> (Arc<Slots>, [u32; 2]) {
        (Arc::clone(&self.slots), self.pair())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        for cookie in self.cookies {
            self.tables().remove_flow(cookie);
        }
        let cleared = self
            .pair()
            .into_iter()
            .try_for_each(|slot| self.tables().clear(slot));
        let mut state = self.slots.state();
        if let Some(user) = state.users.get_mut(self.index as usize) {
            *user = None;
        }
        // A slot with somebody's old state must not be used again.
        if cleared.is_ok() {
            state.free.push(self.index);
        }
    }
}

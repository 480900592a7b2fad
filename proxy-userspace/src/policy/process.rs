//! Who of this host connects: the process behind a captured connection.

use serde::Serialize;

/// A process, as it was when it connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The process's number, as this host's kernel has it.
    pub pid: u32,
    /// The name of the thread, of 15 bytes at most (`comm`).
    pub command: Box<str>,
    /// The path of its cgroup, from the root of the file system of cgroups; empty if it is gone already.
    pub cgroup: Box<str>,
}

/// Whether a cgroup is this one or below it.
pub(super) fn is_within(cgroup: &str, above: &str) -> bool {
    let above = above.trim_end_matches('/');
    cgroup
        .strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_within_those_above_it() {
        assert!(is_within("/a/b", "/a"));
        assert!(is_within("/a/b", "/a/"));
        assert!(is_within("/a", "/a"));
        assert!(is_within("/a", "/"));
        assert!(!is_within("/ab", "/a"));
        assert!(!is_within("/a", "/a/b"));
        assert!(!is_within("", "/a"));
    }
}

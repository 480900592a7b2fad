//! What this process may do beyond what its user may (capabilities(7)).

use std::io;

use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

/// Makes what this thread may have what it has; threads that it starts afterwards have the same.
///
/// A file's capabilities that are only permitted let a program start, without them, where a container's bounding set
/// lacks one (`cap_bprm_creds_from_file`); what it was given it takes up itself.
pub(crate) fn take_up() -> io::Result<()> {
    let held = capabilities(None)?;
    if held.effective != held.permitted {
        let effective = held.permitted;
        set_capabilities(None, CapabilitySets { effective, ..held })?;
    }
    Ok(())
}

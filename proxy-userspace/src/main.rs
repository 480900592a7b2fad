//! The `underpass` program. All of it is in the library, so that a package can link it in another way than cargo does.

use std::process::ExitCode;

fn main() -> ExitCode {
    underpass::command::main()
}

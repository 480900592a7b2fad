//! Any text is a squid.conf, or is refused with a line of it; and the TOML that it is converted to is the
//! same configuration.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use underpass::config::{Config, ConfigError, File, squid};

fuzz_target!(|text: &str| {
    let main = Path::new("f.conf");
    // Other files are empty: what is on the disk is somebody else's.
    let reader = |path: &Path| {
        Ok(if path == main {
            text.to_owned()
        } else {
            String::new()
        })
    };
    // A file that includes itself often is read often.
    if text.contains("f.conf") {
        return;
    }
    let file = match squid::translate_with(main, &reader) {
        Ok(translated) => translated.file,
        Err(ConfigError::Several(errors)) => {
            assert!(
                errors
                    .iter()
                    .all(|error| error.to_string().starts_with("f.conf:"))
            );
            return;
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.starts_with("f.conf:") || text.starts_with("predefined:"),
                "{text}"
            );
            return;
        }
    };
    let written = toml::to_string(&file).expect("every file can be written");
    let again: File = toml::from_str(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(toml::to_string(&again).as_ref(), Ok(&written));
    if written.contains('@') || written.contains("htpasswd") {
        return;
    }
    let one = Config::from_file(file, main).map(drop);
    let other = Config::from_file(again, main).map(drop);
    assert_eq!(one.is_ok(), other.is_ok(), "{one:?} {other:?}\n{written}");
});

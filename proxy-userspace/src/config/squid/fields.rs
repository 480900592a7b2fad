//! What is done to the fields of requests that are forwarded, and of their responses.

use super::{
    super::{
        file::ForwardedFor,
        values::{FieldName, Text},
    },
    Line,
    peers::is_on,
    settings::{Translation, texts},
};

/// `via on|off`
pub(super) fn via(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.file.http.via = is_on(line)?;
    Ok(())
}

/// `forwarded_for on|off|transparent|delete|truncate`
pub(super) fn forwarded_for(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.file.http.forwarded_for = match texts(line).as_slice() {
        ["on"] => ForwardedFor::On,
        ["off"] => ForwardedFor::Off,
        ["transparent"] => ForwardedFor::Transparent,
        ["delete"] => ForwardedFor::Delete,
        ["truncate"] => ForwardedFor::Truncate,
        _ => return Err("write forwarded_for on, off, transparent, delete or truncate".to_owned()),
    };
    Ok(())
}

/// `request_header_access NAME deny all`
pub(super) fn request_header_access(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let name = denied(line)?;
    to.file.http.remove_request_fields.extend(name);
    Ok(())
}

/// `reply_header_access NAME deny all`
pub(super) fn reply_header_access(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let name = denied(line)?;
    to.file.http.remove_response_fields.extend(name);
    Ok(())
}

/// The field that nobody gets; none if everybody does.
fn denied(line: &Line) -> Result<Option<Text<FieldName>>, String> {
    match texts(line).as_slice() {
        [name, ..] if ["All", "Other"].contains(name) => Err(format!(
            "{} {name} is not supported; name each field",
            line.name
        )),
        [name, "deny", "all"] => Ok(Some(Text(name.parse()?))),
        [_, "allow", "all"] => Ok(None),
        _ => Err(format!(
            "write {} NAME deny all: a field goes for everybody or nobody",
            line.name
        )),
    }
}

//! `[http]`: the fields of requests that are forwarded, and of their responses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::values::{FieldName, Text},
    is_default,
};

/// What is done to fields.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Whether `Via` says that a message has passed this proxy. Without it, circles of parents are not noticed.
    pub via: bool,
    /// What becomes of `X-Forwarded-For` [default: transparent].
    #[serde(skip_serializing_if = "is_default")]
    pub forwarded_for: ForwardedFor,
    /// Fields that no origin gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove_request_fields: Vec<Text<FieldName>>,
    /// Fields that no client gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove_response_fields: Vec<Text<FieldName>>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            via: true,
            forwarded_for: ForwardedFor::default(),
            remove_request_fields: Vec::new(),
            remove_response_fields: Vec::new(),
        }
    }
}

/// What becomes of `X-Forwarded-For`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardedFor {
    /// It stays as it is.
    #[default]
    Transparent,
    /// The client's address is added.
    On,
    /// `unknown` is added.
    Off,
    /// It is taken away.
    Delete,
    /// It is replaced by the client's address.
    Truncate,
}

//! What both ends of a tunnel say before there is one: PROTOCOL.md section 1.

use http::HeaderName;

/// Where clients ask for the upgrade.
pub const PATH: &str = "/ws";

/// The WebSocket subprotocol, with the version of the wire.
pub const SUBPROTOCOL: &str = "anyproxy.v1";

/// The header that names the group a client serves; without it, the default one.
pub const GROUP_HEADER: HeaderName = HeaderName::from_static("anyproxy-group");

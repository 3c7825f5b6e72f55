//! The YAML file of the `anyproxy` program.
//!
//! [`File`] is the file as it is written: sections of optional keys, unknown keys refused, every value parsed into
//! the type it means, so that a mistake is told with its place: `gateway.yaml:12:5: unknown key "listn_addr", did
//! you mean "listen_addr"?`. What absent keys mean is decided where they are used; each key's documentation here
//! says its default.
//!
//! A file is read with [`File::load`], which also applies the environment: `ANYPROXY_GATEWAY__LISTEN_ADDR` stands
//! for `gateway: { listen_addr: … }` and wins over the file.
//!
//! ```
//! let file = anyproxy_config::File::parse("demo.yaml", "gateway: { listen_addr: ':8443' }").unwrap();
//! assert!(file.gateway.unwrap().listen_addr.is_some());
//!
//! let error = anyproxy_config::File::parse("demo.yaml", "gateway:\n  listn_addr: ':8443'\n").unwrap_err();
//! assert_eq!(error.to_string(), "demo.yaml:2:3: unknown key \"listn_addr\", did you mean \"listen_addr\"?");
//! ```
//!
//! It is a crate of its own, so that it can be tested and fuzzed without building the program.

mod error;
mod load;
mod overlay;
mod section;
mod value;

pub use error::{ConfigError, Place};
pub use section::{
    Access, Admin, Balance, Bandwidth, Client, ClientAccount, File, Front, Gateway, Limits, LocalService,
    Log, OpenPort, Proxy, Queue, Rate, Route, Rule, Sni, Udp, User,
};
pub use value::{
    Action, AnyOf, Bytes, Duration, Gateways, HostPattern, Key, ListenAddr, LogFormat, LogLevel, LogOutput,
    Password, Ports, Protocol, Replicas, Spanned, StickyBy, Strategy,
};

#[doc(hidden)]
pub use load::fuzz;
pub use load::is_variable;

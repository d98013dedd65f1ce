//! Text for people, from records and replies. Pure: strings in, strings out.

pub(crate) mod exits;
pub(crate) mod finding;
pub(crate) mod page;
pub(crate) mod status;

#[cfg(test)]
mod schema;

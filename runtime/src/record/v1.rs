//! Version 1: what Berth wrote until records got one envelope, of whose forms most go on.

mod envelope;
mod node;
mod pod;
mod security;

pub(crate) use envelope::{image_copy, image_row, network, object};
pub(crate) use node::*;
pub(crate) use pod::*;
pub(crate) use security::*;

mod container;
pub(crate) use container::*;

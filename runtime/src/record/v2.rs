//! Version 2: containers with their process as text, and everything in one envelope. What is not here is as in
//! version 1.

mod container;
mod image;

pub(crate) use super::v1::{Attachment, Image, LastAddress, Lease, Pod, PodCidrs};
pub(crate) use container::*;
pub(crate) use image::*;

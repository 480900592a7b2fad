//! What people and machines watch: the places agree with each other and with both ends, and look as they should.

mod agreement;
mod page;
mod prometheus;
mod top;

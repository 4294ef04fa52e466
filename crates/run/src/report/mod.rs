//! `report.html`: what a run did, on one page that needs nothing but itself.

mod chart;
mod page;
mod records;
mod run;

pub use page::Page;
pub use run::write;
pub(crate) use run::write_as;

//! `report.html`: what one run did, or several, on a page that needs nothing but itself.

mod chart;
mod comparison;
mod page;
mod records;
mod rewards;
mod run;
mod turns;

pub use comparison::write as write_comparison;
pub use page::Page;
pub(crate) use records::for_lines;
pub use run::write;
pub(crate) use run::{write_as, write_into};
pub use turns::{
    FinishedIteration, Iterations, SettingMetrics, TurnReport, conversion_tables, turns_table,
    write_conversion,
};

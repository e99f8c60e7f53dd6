//! Training data from files to rows: masks, truncation, packing, label tasks, and what bad input is told.

mod records;
mod rows;
mod table;
mod words;

//! Writes what was planned, tensor by tensor, in pieces of rows.

use std::sync::atomic::{AtomicBool, Ordering};

use super::checkpoint::Source;
use super::error::{Error, Result};
use super::plan::{Content, Item, Kind, Matrix, Rows};
use super::ternary::{self, Deviation, MasterScale};
use crate::ggml::{Dtype, GgufStream};
use crate::parallel;

/// Where tensors go, and who is told.
pub(super) struct Writer<'a> {
    pub stream: GgufStream,
    pub threads: usize,
    pub total: u64,
    pub done: u64,
    pub progress: &'a mut dyn FnMut(u64, u64),
    pub stop: &'a AtomicBool,
}

impl Writer<'_> {
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        self.stream.write(bytes)?;
        self.done += bytes.len() as u64;
        (self.progress)(self.done, self.total);
        Ok(())
    }

    fn put_floats(&mut self, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.put(&bytes)
    }
}

/// What was found while writing.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Values that are 0, among those of ternary matrices.
    pub n_zeros: u64,
    pub n_ternary: u64,
    /// The largest error that f16 made of a scale, and the tensor it is in.
    pub rounded: Option<(String, f64)>,
}

/// Writes all items in their order.
pub(super) fn write(items: &[Item<'_>], writer: &mut Writer<'_>) -> Result<Found> {
    let mut found = Found::default();
    let mut masters = MasterScale::default();
    for item in items {
        match &item.content {
            Content::Matrix(matrix) => {
                if matrix.kind == Kind::Masters {
                    masters = MasterScale::of(&matrix.source, writer.threads)?;
                }
                write_matrix(item, matrix, masters, writer, &mut found)?;
            }
            Content::Vector { source, rows, factor } => {
                writer.put_floats(&vector(source, *rows, *factor)?)?;
            }
            Content::Constant(values) => writer.put_floats(values)?,
            Content::ScaleOfMasters { factor } => writer.put_floats(&[masters.scale * factor])?,
        }
    }
    Ok(found)
}

fn vector(source: &Source<'_>, rows: Rows, factor: f32) -> Result<Vec<f32>> {
    let mut values = vec![0.0; source.shape[0]];
    source.read_row(0, &mut values)?;
    Ok((0..rows.to()).map(|i| rows.source(i).map_or(0.0, |row| values[row] * factor)).collect())
}

/// One thread's piece of a matrix.
struct Piece {
    bytes: Vec<u8>,
    n_zeros: u64,
    deviation: Deviation,
}

fn write_matrix(
    item: &Item<'_>,
    matrix: &Matrix<'_>,
    masters: MasterScale,
    writer: &mut Writer<'_>,
    found: &mut Found,
) -> Result<()> {
    let (n_rows, n_per_row) = (matrix.rows.to(), matrix.cols.to());
    let (n_chunks, rows_of) = ternary::chunks(n_rows, n_per_row);
    let make = |chunk: usize| -> Result<Piece> {
        let mut values = Vec::with_capacity(rows_of(chunk).len() * n_per_row);
        let mut row = vec![0.0; matrix.cols.from()];
        for r in rows_of(chunk) {
            let start = values.len();
            values.resize(start + n_per_row, 0.0);
            if let Some(from) = matrix.rows.source(r) {
                read_row(matrix, masters, from, &mut row)?;
                matrix.cols.apply(&row, &mut values[start..]);
            }
        }
        if matrix.factor != 1.0 {
            values.iter_mut().for_each(|x| *x *= matrix.factor);
        }
        let mut piece = Piece { bytes: Vec::new(), n_zeros: 0, deviation: Deviation::default() };
        match matrix.kind {
            Kind::Packed { .. } | Kind::Masters | Kind::OneScale { .. } => {
                ternary::pack(&values, n_per_row, item.dtype, &mut piece.bytes)?;
            }
            Kind::Ternary => {
                ternary::round_ternary_blocks(&mut values, item.dtype.block_size(), &mut piece.deviation);
                ternary::pack(&values, n_per_row, item.dtype, &mut piece.bytes)?;
            }
            Kind::Plain => {
                check_range(&matrix.source, item.dtype, &values)?;
                item.dtype.quantize(&values, n_per_row, &mut piece.bytes)?;
            }
        }
        piece.n_zeros = values.iter().filter(|x| **x == 0.0).count() as u64;
        Ok(piece)
    };
    let mut deviation = Deviation::default();
    let mut n_zeros = 0;
    let threads = writer.threads;
    parallel::in_order(n_chunks, threads, make, |piece| {
        deviation = deviation.and(piece.deviation);
        n_zeros += piece.n_zeros;
        writer.put(&piece.bytes)
    })?;
    if matrix.kind == Kind::Plain {
        return Ok(());
    }
    found.n_zeros += n_zeros;
    found.n_ternary += (n_rows * n_per_row) as u64;
    let worst = found.rounded.as_ref().map_or(0.0, |(_, error)| *error);
    if deviation.max() > worst {
        found.rounded = Some((item.name.clone(), deviation.max()));
    }
    Ok(())
}

/// A bf16 value can be one that f16 makes infinite.
fn check_range(source: &Source<'_>, dtype: Dtype, values: &[f32]) -> Result<()> {
    match values.iter().find(|x| dtype == Dtype::F16 && x.abs() > half::f16::MAX.to_f32()) {
        Some(&found) => Err(Error::TooLarge { path: source.path.into(), tensor: source.name.into(), found }),
        None => Ok(()),
    }
}

/// Row `row` of the checkpoint's matrix, before any factor.
fn read_row(matrix: &Matrix<'_>, masters: MasterScale, row: usize, out: &mut [f32]) -> Result<()> {
    match matrix.kind {
        Kind::Packed { .. } => ternary::unpack_row(&matrix.source, 4 * matrix.source.shape[0], row, out),
        Kind::Masters => {
            matrix.source.read_row(row, out)?;
            masters.round(out);
            Ok(())
        }
        Kind::OneScale { .. } => {
            matrix.source.read_row(row, out)?;
            out.iter_mut().filter(|x| **x != 0.0).for_each(|x| *x = x.signum());
            Ok(())
        }
        Kind::Ternary | Kind::Plain => matrix.source.read_row(row, out),
    }
}

//! Files as read-only memory: nothing is read before it is looked at.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use super::error::{Error, Result};

/// The bytes of a file. An empty file is an empty slice.
#[derive(Debug)]
pub struct FileMap(Option<Mmap>);

impl FileMap {
    /// Maps a whole file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |action| move |source| Error::Io { path: path.into(), action, source };
        let file = File::open(path).map_err(io("open the file"))?;
        let meta = file.metadata().map_err(io("read the file"))?;
        if meta.is_dir() {
            return Err(io("read the file")(std::io::ErrorKind::IsADirectory.into()));
        }
        if meta.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is read-only and private to this value. Another process could still cut the file short under
        // it, which ends the process with SIGBUS; upstream's own loader lives with the same.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map the file"))?;
        Ok(Self(Some(map)))
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

//! The model that is measured: a file, or one made for the measurement.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::commands::synth;
use crate::commands::ui::{Problem, Ui};
use crate::ggml::GgufFile;

/// A model, or what to make one of.
#[derive(Debug, clap::Args)]
pub struct SourceArgs {
    /// The model, a GGUF file; with --shape it is made if it is not there
    #[arg(short, long, value_name = "GGUF")]
    model: Option<PathBuf>,

    /// Measure a random model of this shape (see `synth`), in a temporary file if there is no --model
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,

    /// Type of its linear layers
    #[arg(long = "type", value_name = "TYPE", default_value = "tq2_0", requires = "shape")]
    dtype: String,
}

/// A model file, which may end with the measurement.
pub enum Source {
    Kept(PathBuf),
    Temporary(tempfile::TempPath),
}

impl Source {
    pub fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(path) => path,
        }
    }

    pub fn open(&self) -> crate::ggml::Result<GgufFile> {
        GgufFile::open(self.path())
    }

    /// The file of that name, or the model that SHAPE:TYPE names, with random weights.
    pub fn named(model: &str, ui: &Ui) -> anyhow::Result<Self> {
        match shape_of(model)? {
            Some(config) => Self::made(|path| synth::write(&config, path, ui)),
            None => Ok(Self::Kept(model.into())),
        }
    }

    /// The same with zeros for weights, which take no room on the disk.
    pub fn named_empty(model: &str) -> anyhow::Result<Self> {
        match shape_of(model)? {
            Some(config) => Self::made(|path| crate::synth::write_empty(&config, path)),
            None => Ok(Self::Kept(model.into())),
        }
    }

    /// Whether its weights are a model's own.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    fn made<T>(write: impl FnOnce(&Path) -> crate::synth::Result<T>) -> anyhow::Result<Self> {
        let file = temporary(&std::env::temp_dir())?;
        write(&file)?;
        Ok(Self::Temporary(file))
    }
}

/// What SHAPE:TYPE describes, if there is no file of that name.
fn shape_of(model: &str) -> anyhow::Result<Option<crate::synth::Config>> {
    let named = model.rsplit_once(':').filter(|_| !Path::new(model).exists());
    Ok(named.map(|(shape, dtype)| synth::config(shape, dtype, 42)).transpose()?)
}

fn temporary(folder: &Path) -> anyhow::Result<tempfile::TempPath> {
    let file = tempfile::Builder::new().prefix("qvac-ft-bench-").suffix(".gguf").tempfile_in(folder);
    Ok(file.with_context(|| format!("cannot write to `{}`", folder.display()))?.into_temp_path())
}

fn no_model() -> Problem {
    Problem::new("no model is named", "pass `--model FILE`, or `--shape NAME` to have one made")
}

impl SourceArgs {
    /// For errors.
    pub fn what(&self) -> String {
        match (&self.model, &self.shape) {
            (Some(model), _) => model.display().to_string(),
            (None, shape) => shape.clone().unwrap_or_else(|| "?".into()),
        }
    }

    /// A file with the model's table: the model's own, or for a shape one without values.
    pub fn table(&self) -> anyhow::Result<Source> {
        let Some(shape) = self.shape.as_ref().filter(|_| !self.model.as_ref().is_some_and(|m| m.exists()))
        else {
            return Ok(Source::Kept(self.model.clone().ok_or_else(no_model)?));
        };
        let config = synth::config(shape, &self.dtype, 42)?;
        Source::made(|path| crate::synth::write_empty(&config, path))
    }

    /// The file itself, if one was named.
    pub fn model(&self) -> Option<&Path> {
        self.model.as_deref()
    }

    /// The model's file, made if that is asked for.
    pub fn ready(&self, ui: &Ui) -> anyhow::Result<Source> {
        let Some(shape) = &self.shape else {
            return Ok(Source::Kept(self.model.clone().ok_or_else(no_model)?));
        };
        let config = synth::config(shape, &self.dtype, 42)?;
        let Some(path) = &self.model else {
            return Source::made(|path| synth::write(&config, path, ui));
        };
        if path.exists() {
            let file = GgufFile::open(path)?;
            let (found, expected) = (file.get_str("general.name").ok().flatten(), config.name());
            if found != Some(&expected) {
                let fact = format!(
                    "`{}` is another model: it is called `{}`, expected `{expected}`",
                    path.display(),
                    found.unwrap_or_default()
                );
                return Err(Problem::new(fact, "leave out `--shape`, or give `--model` another name").into());
            }
        } else {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            // Whole or not at all: a file of that name is not looked at closely the next time.
            let file = temporary(folder)?;
            synth::write(&config, &file, ui)?;
            file.persist(path).with_context(|| format!("cannot write to `{}`", path.display()))?;
        }
        Ok(Source::Kept(path.clone()))
    }
}

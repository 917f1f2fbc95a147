//! Bundles: `config.json` as it ran and the directory around it.

//! Root file systems as OCI layers: what the upper layer changed, or everything.

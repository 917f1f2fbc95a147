//! Records of areas and pages.

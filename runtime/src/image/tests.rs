//! The manager against registries that behave and registries that do not.


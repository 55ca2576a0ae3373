//! A disk that is nothing but a backing store.

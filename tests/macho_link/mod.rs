//! Objects for either architecture, linked by `orcane link`.

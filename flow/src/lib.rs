//! What happened, for people and for the ledger.

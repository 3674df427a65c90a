//! The node's decisions and the words they are made of: pure, and knows no other module.

//! Builds each part once, wires them, supervises the tasks and drains them in order.

//! The socket: upgrade, session, connection.

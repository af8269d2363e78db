-- What the gateways read of a platform (docs/authorization.md, section 4): merchant 42 has the users 17 and 18, merchant 43 has 18, organizer 7 has 17, and user 1 may manage connections.
CREATE TABLE policy_definition (
    id text NOT NULL PRIMARY KEY, variant text NOT NULL, subject_type text NOT NULL, subject_id text NOT NULL,
    target_type text NOT NULL, target_id text NOT NULL, action text, effect text, domain text);
CREATE TABLE permission (id text NOT NULL PRIMARY KEY, code text NOT NULL);
CREATE TABLE role (id text NOT NULL PRIMARY KEY, identifier text NOT NULL);

INSERT INTO permission (id, code) VALUES ('connections', 'WebSocketClient.*');
INSERT INTO role (id, identifier) VALUES ('member', 'member'), ('connection-admin', 'connection-admin');
INSERT INTO policy_definition (id, variant, subject_type, subject_id, target_type, target_id, action, effect, domain) VALUES
    ('1', 'group', 'User', '17', 'Role', 'member', NULL, NULL, 'Merchant_42'),
    ('2', 'group', 'User', '18', 'Role', 'member', NULL, NULL, 'Merchant_42'),
    ('3', 'group', 'User', '18', 'Role', 'member', NULL, NULL, 'Merchant_43'),
    ('4', 'group', 'User', '17', 'Role', 'member', NULL, NULL, 'Organizer_7'),
    ('5', 'policy', 'Role', 'connection-admin', 'Permission', 'connections', 'read', NULL, NULL),
    ('6', 'policy', 'Role', 'connection-admin', 'Permission', 'connections', 'execute', NULL, NULL),
    ('7', 'policy', 'Role', 'connection-admin', 'Permission', 'connections', 'update', NULL, NULL),
    ('8', 'policy', 'Role', 'connection-admin', 'Permission', 'connections', 'delete', NULL, NULL),
    ('9', 'group', 'User', '1', 'Role', 'connection-admin', NULL, NULL, NULL);

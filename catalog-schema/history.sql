-- The named revisions of a repository (schema 1.0, revision 3).
CREATE TABLE tags (
    name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER,
    description TEXT, size INTEGER, branch TEXT,
    CONSTRAINT pk_tags PRIMARY KEY (name),
    FOREIGN KEY (branch) REFERENCES branches (branch)
);
CREATE TABLE branches (
    branch TEXT, parent TEXT, initial_revision INTEGER,
    CONSTRAINT pk_branch PRIMARY KEY (branch),
    FOREIGN KEY (parent) REFERENCES branches (branch),
    CHECK ((branch <> '') OR (parent IS NULL)),
    CHECK ((branch = '') OR (parent IS NOT NULL))
);
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
INSERT INTO branches (branch, parent, initial_revision) VALUES ('', NULL, 0);

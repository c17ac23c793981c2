-- What strata remembers between runs, in state/state.db. May be deleted at no loss but time.

-- Which object holds a piece of content. `key` is the BLAKE3 hash of the plain bytes; `kind` is 0 for a whole file and
-- 1 for a chunk; `encoder` names encoder, version and level in its low 8 bits, and the hash algorithm of the object's name in the
-- bits above (0 is SHA-1); `length` is the length of the object, NULL in rows of versions that did not note it.
CREATE TABLE IF NOT EXISTS content (
    key BLOB NOT NULL, size INTEGER NOT NULL, kind INTEGER NOT NULL, encoder INTEGER NOT NULL,
    object BLOB NOT NULL, length INTEGER,
    PRIMARY KEY (key, size, kind, encoder)
) WITHOUT ROWID;

-- Trees whose catalogs are stored, published or not. `options` is everything but the path that their bytes depend on;
-- `facts` is what the catalogs themselves do not say, in JSON.
CREATE TABLE IF NOT EXISTS tree (
    path TEXT NOT NULL, options TEXT NOT NULL,
    catalog TEXT NOT NULL, size INTEGER NOT NULL,
    facts TEXT NOT NULL,
    PRIMARY KEY (path, options)
) WITHOUT ROWID;

-- Images that failed, and when (in seconds since 1970) they are tried again.
CREATE TABLE IF NOT EXISTS failure (
    image TEXT PRIMARY KEY,
    failures INTEGER NOT NULL, retry_at INTEGER NOT NULL, error TEXT NOT NULL
) WITHOUT ROWID;

-- The digest that a registry gave for an image which another program published, when the two were found to be the same.
-- `published` is the object that holds the image's manifest.
CREATE TABLE IF NOT EXISTS seen (
    image TEXT PRIMARY KEY,
    published TEXT NOT NULL, digest TEXT NOT NULL
) WITHOUT ROWID;

-- Blobs of layers that were read to their ends, with the size and diff ID that they were found to have.
CREATE TABLE IF NOT EXISTS blob (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL, diff_id TEXT NOT NULL
) WITHOUT ROWID;

-- The directories of objects as the last run left them, in one row. `marks` says when each changed last; `epoch` is one higher
-- whenever another program has changed one of them, because that program may have deleted objects.
CREATE TABLE IF NOT EXISTS store (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    epoch INTEGER NOT NULL, marks BLOB NOT NULL
);

-- Published trees of which every catalog and object was in the store in an epoch: this repository directory published them
-- then, or looked at each of their objects.
CREATE TABLE IF NOT EXISTS whole (
    path TEXT PRIMARY KEY,
    catalog TEXT NOT NULL, epoch INTEGER NOT NULL
) WITHOUT ROWID;

-- What a registry had under a name when it was found to be no image: the type of the artifact. `wanted` is its digest and the
-- platforms that were asked for, `writer` the version of the program, as for others it may be an image.
CREATE TABLE IF NOT EXISTS artifact (
    name TEXT PRIMARY KEY,
    wanted TEXT NOT NULL, type TEXT NOT NULL, writer TEXT NOT NULL
) WITHOUT ROWID;

-- Trees that no name leads to and that no publication noted, and when a look at all names first found that (in seconds since
-- 1970). One that is in use again is deleted here.
CREATE TABLE IF NOT EXISTS unused (path TEXT PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID;

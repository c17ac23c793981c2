-- What strata remembers between runs, in state/state.db. May be deleted at no loss but time.

-- Which object holds a piece of content. `key` is the BLAKE3 hash of the plain bytes; `kind` is 0 for a whole file and
-- 1 for a chunk; `encoder` names encoder, version and level.
CREATE TABLE IF NOT EXISTS content (
    key BLOB NOT NULL, size INTEGER NOT NULL, kind INTEGER NOT NULL, encoder INTEGER NOT NULL,
    object BLOB NOT NULL,
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

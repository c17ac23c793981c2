-- Made after the rows are in: that is faster than keeping it up to date.
CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);

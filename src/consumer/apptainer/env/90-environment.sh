#!/bin/sh
# The place for environment settings of one's own.

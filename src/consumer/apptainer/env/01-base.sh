#!/bin/sh
# The first of the environment files. It sets nothing.

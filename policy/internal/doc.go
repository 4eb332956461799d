// Package internal generates docs/documents.md from the tables that the loader goes by, in its tests: it has no other code.
package internal

// Package imports holds the dependency promise of this module as a test: what each package may reach.
package imports

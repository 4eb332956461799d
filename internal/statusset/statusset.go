// Package statusset has sets of HTTP statuses for settings.
package statusset

// The statuses that a set can hold.
const (
	Min = 100
	Max = 599
)

// Set is a set of HTTP statuses from Min to Max. The zero value is empty. Sets can be compared with ==.
type Set struct {
	bits [(Max - Min + 32) / 32]uint32 // of 4 bytes, so that small fields beside a Set take no more room
}

// Add adds a status. It reports false if the status is not from Min to Max.
func (s *Set) Add(status int) bool {
	i := uint(status - Min) // huge below Min
	if i > Max-Min {
		return false
	}
	s.bits[i/32] |= 1 << (i % 32)
	return true
}

// Has reports whether status is in the set.
func (s *Set) Has(status int) bool {
	i := uint(status - Min)
	return i <= Max-Min && s.bits[i/32]&(1<<(i%32)) != 0
}

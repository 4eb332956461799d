package field

// Values has room for the values of some headers, so that setting them in what is allocated for a call costs no allocation each.
type Values struct {
	used int
	room [8]string
}

// Of returns value as a header has it. It is allocated only where there is no room left.
func (v *Values) Of(value string) []string {
	if v.used == len(v.room) {
		return []string{value}
	}
	i := v.used
	v.room[i] = value
	v.used++
	return v.room[i:v.used:v.used]
}

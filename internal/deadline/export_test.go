package deadline

// Free returns how many signals are kept.
func (f *Signals) Free() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.free)
}

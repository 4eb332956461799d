package leak

import "runtime"

// Heap returns the bytes of the heap that are in use, after garbage collection.
func Heap() int {
	for range 3 { // what is cleaned up in one round is free in the next
		runtime.GC()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// Allocated returns the bytes that are allocated while f runs, those of other goroutines included.
func Allocated(f func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}

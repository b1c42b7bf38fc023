//go:build race

package cpu

// raceDetector: the tests of single kernels, which run in one goroutine and in
// assembly that the detector does not see, would only take longer.
const raceDetector = true

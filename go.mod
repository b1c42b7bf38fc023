module github.com/streamcqsa/streamcqsa

go 1.26

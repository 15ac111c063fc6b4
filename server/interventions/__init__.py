"""The intervention core: operations on selected token rows and the plan of one forward; knows no engine, no HTTP."""

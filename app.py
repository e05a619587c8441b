"""The demo: python app.py [--checkpoint DIR] [--host HOST] [--port PORT]"""

from gpt2lib.demo import main

if __name__ == "__main__":
    main()

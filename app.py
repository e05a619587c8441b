"""The demo: python app.py [--checkpoint DIR ...] [--pretrained gpt2] [--host HOST] [--port PORT] [--root-path PATH]"""

from gpt2lib.demo import main

if __name__ == "__main__":
    main()
